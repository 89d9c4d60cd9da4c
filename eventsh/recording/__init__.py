"""Recordings: what crossed a broker, as a file.

format    the bytes, and nothing else
frames    what is in the frames of a recording: single events, choices of them, other forms of them
text      a recording as lines of JSON, and back
seek      a place in the middle of a file, by its checkpoints
segments  the files of one recording, and compressed ones
reader    all of them, one after the other or from a place in the middle
positions places as people name them, and what is between two of them
writer    files: appending, going on with one, rotation, what is on disk
recorder  what a broker or an observer gives, written by a thread that holds nobody up
flight    the last events, in memory
player    what is posted of a recording, and
pace      when
"""
