"""Recordings: what crossed a broker, as a file.

format    the bytes, and nothing else
frames    what is in the frames of a recording: single events, choices of them, other forms of them
reader    files and segments, one after the other or from a place in the middle
writer    files and segments: appending, rotation, what is on disk
recorder  what a broker or an observer gives, written by a thread that holds nobody up
player    the same events again, each at its time
"""
