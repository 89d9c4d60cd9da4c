"""Events that kill the processes which handle them become dead letters, and nothing else does."""

from __future__ import annotations

import pytest

from eventsh.protocol.frame import Kind, decode_header
from eventsh.protocol.messages import Gap, Reply
from tests.core.net import Net, Process, ack, observer, post, post_unique, poster, slot_of, worker, workers


def die(net, process, ended="SIGKILL", **end):
    """The process ends, and the broker learns of it."""
    slot = net.kill(process)
    had_any = net.router.end_process(slot, net.now, ended=ended, **end)
    net.collect()
    return had_any


class Pool:
    """Workers whose processes die when they are given an event with "kill" in its data, and are replaced."""

    def __init__(self, net, count):
        self.net = net
        self.number = 0
        self.deaths = 0
        # Slots whose handlers do not kill.
        self.mended: set[int] = set()
        self.everybody: list[tuple[int, Process]] = []
        self.holders = {slot: self.start(slot) for slot in range(count)}

    def start(self, slot):
        self.number += 1
        process = worker(self.net, self.number, slot, identity=f"life {self.number}")
        self.everybody.append((slot, process))
        return process

    def kills(self, slot, delivery):
        return slot not in self.mended and any(
            "kill" in str(data) for run in delivery.runs if run[0] != "eventsh" for data in run[2]
        )

    def run(self, rounds=400):
        for _ in range(rounds):
            self.net.run(*list(self.posters()))
            moved = False
            for slot, process in list(self.holders.items()):
                moved |= self.step(slot, process)
            if not moved:
                return
        raise AssertionError("it never ends")

    def posters(self):
        mine = {process for _, process in self.everybody}
        return [c.process for c in self.net.channels if c.process not in mine]

    def step(self, slot, process):
        net = self.net
        if process.channel is None:
            self.holders[slot] = self.start(slot)
            return True
        moved = bool(process.channel.down or process.channel.up)
        net.down(process.channel)
        net.flush(process)
        net.up(process.channel)
        # One delivery at a time, as a sync handler does.
        delivery = net.take(process)
        if delivery is None:
            return moved
        if self.kills(slot, delivery):
            process.handled.pop()
            self.deaths += 1
            die(net, process)
        else:
            net.complete(process)
            net.flush(process)
        return True

    def handled(self, slot):
        return [data for each, p in self.everybody if each == slot for data in p.data_of("app")]

    def gaps(self, slot):
        return [gap for each, p in self.everybody if each == slot for gap in p.gaps]

    def missed_dead(self, slot):
        return sum(gap["missed"] for gap in self.gaps(slot) if gap["reason"] == "dead letter")


def ask(net, process, what, **arguments):
    process.session.request(what, arguments)
    before = len(process.messages)
    net.run(process)
    (reply,) = [m for m in process.messages[before:] if isinstance(m, Reply)]
    return reply


def letters(net, process):
    return ask(net, process, "dead_list").data


# --- how many die ---


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_broadcast_alone_kills_a_process_of_each_slot_and_two_more_at_most(count):
    net = Net()
    pool, posting = Pool(net, count), poster(net)
    pool.run()
    post(net, posting, "kill")
    pool.run()
    assert max(3, count) <= pool.deaths <= count + 2
    (letter,) = letters(net, posting)["dead"]
    assert (letter["source"], letter["event"], letter["unique"]) == ("app", "e", None)
    assert len(letter["deaths"]) == pool.deaths
    assert {death["ended"] for death in letter["deaths"]} == {"SIGKILL"}
    assert {death["worker_id"] for death in letter["deaths"]} == set(range(count))
    assert [pool.missed_dead(slot) for slot in range(count)] == [1] * count


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_as_one_of_a_batch_it_costs_one_process_more_for_each_slot(count, place):
    net = Net()
    pool, posting = Pool(net, count), poster(net)
    pool.run()
    batch = [number if number != place else "kill" for number in range(100)]
    post(net, posting, *batch)
    pool.run()
    assert pool.deaths <= count + count + 2
    for slot in range(count):
        assert pool.handled(slot) == [data for data in batch if data != "kill"]
        (gap,) = pool.gaps(slot)
        assert (gap["missed"], gap["last_seq"] - gap["first_seq"], gap["reason"]) == (1, 0, "dead letter")
    assert net.router.status(net.now)["broker"]["dead_letters"] == 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_unique_event_alone_kills_three_processes(count):
    net = Net()
    pool, posting = Pool(net, count), poster(net)
    pool.run()
    post_unique(net, posting, "kill", "the key")
    pool.run()
    assert pool.deaths == 3
    (letter,) = letters(net, posting)["dead"]
    assert letter["unique"] == "the key"
    assert [pool.gaps(slot) for slot in range(count)] == [[]] * count
    # Confirmed to its poster, which no longer keeps it: the next broker knows of no deaths. Its key stays taken.
    assert (posting.outbox.queued, posting.outbox.kept) == (0, 0)
    post_unique(net, posting, "again", "the key")
    pool.run()
    assert net.router.status(net.now)["broker"]["ignored_repeats"] == 1


def test_a_unique_event_among_others_kills_one_process_more_for_each_slot_that_had_more_in_hand():
    net = Net()
    pool, posting = Pool(net, 2), poster(net)
    pool.run()
    for number in range(10):
        posting.outbox.post("app", "e", number)
    posting.outbox.post_unique("app", "u", "kill", "key")
    for number in range(10, 20):
        posting.outbox.post("app", "e", number)
    pool.run()
    assert pool.deaths <= 5
    assert [pool.handled(slot) for slot in range(2)] == [list(range(20))] * 2
    assert len(letters(net, posting)["dead"]) == 1


def test_two_killers_in_one_batch_both_become_dead_letters():
    net = Net()
    pool, posting = Pool(net, 2), poster(net)
    pool.run()
    post(net, posting, 1, "kill a", 2, "kill b", 3)
    pool.run()
    assert len(letters(net, posting)["dead"]) == 2
    assert [pool.handled(slot) for slot in range(2)] == [[1, 2, 3]] * 2
    assert [pool.missed_dead(slot) for slot in range(2)] == [2, 2]


def test_every_kind_of_killer_at_once_leaves_all_else_handled_once():
    net = Net()
    pool, posting = Pool(net, 3), poster(net)
    pool.run()
    for round_ in range(3):
        post(net, posting, *[f"{round_} {n}" if n != 5 else f"kill {round_}" for n in range(12)])
        post_unique(net, posting, f"kill unique {round_}", f"k{round_}")
        post(net, posting, f"last {round_}")
    pool.run(2000)
    wanted = [f"{r} {n}" for r in range(3) for n in range(12) if n != 5] + [f"last {r}" for r in range(3)]
    for slot in range(3):
        assert sorted(pool.handled(slot)) == sorted(wanted)
        assert pool.missed_dead(slot) == 3
    assert len(letters(net, posting)["dead"]) == 6
    assert posting.outbox.queued == 0


# --- what counts ---


def in_hand(net, process):
    """Everything under way has arrived, and the handlers have begun."""
    ack(net, process)
    net.take(process)


@pytest.mark.parametrize("end", ["goodbye", "supervisor"])
def test_an_end_that_was_meant_counts_for_nothing(end):
    net = Net()
    posting = poster(net)
    for number in range(1, 6):
        process = worker(net, number, 0)
        if number == 1:
            post(net, posting, "innocent")
        in_hand(net, process)
        if end == "goodbye":
            process.session.leave(leave=False)
            net.flush(process)
            net.up(process.channel)
        die(net, process, counts=end == "goodbye")
    assert letters(net, posting)["dead"] == []
    last = worker(net, 6, 0)
    net.run()
    assert last.data_of("app") == ["innocent"]


def test_a_lost_connection_is_no_death():
    net = Net()
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "slow")
    in_hand(net, process)
    for _ in range(5):
        net.disconnect(process)
        net.attach(process)
    net.run()
    assert letters(net, posting)["dead"] == []
    assert process.data_of("app") == ["slow"]
    assert process.gaps == []


def test_a_process_counts_as_dead_when_another_takes_its_slot():
    net = Net()
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "kill")
    for number in range(2, 5):
        in_hand(net, process)
        net.kill(process)
        process = worker(net, number, 0)
    net.run()
    assert [death["ended"] for death in letters(net, posting)["dead"][0]["deaths"]] == ["gone"] * 3
    assert process.data_of("app") == []
    assert [gap["reason"] for gap in process.gaps] == ["dead letter"]


def test_a_process_counts_as_dead_when_it_does_not_come_back_in_time():
    net = Net(max_deliveries=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post_unique(net, posting, "kill", "key")
    in_hand(net, process)
    net.kill(process)
    net.advance(6)
    net.run(posting)
    assert [death["ended"] for death in letters(net, posting)["dead"][0]["deaths"]] == ["gone"]


def test_a_death_with_several_events_in_hand_counts_for_none_of_them():
    net = Net(max_deliveries=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1, 2)
    in_hand(net, process)
    assert die(net, process)
    net.run(posting)
    assert letters(net, posting)["dead"] == []


def test_an_event_that_was_not_received_is_not_to_blame():
    net = Net(max_deliveries=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1)
    assert not die(net, process)
    net.run(posting)
    assert letters(net, posting)["dead"] == []
    process = worker(net, 2, 0)
    net.run()
    (delivery,) = [delivery for delivery in process.handled if delivery.runs[0][0] == "app"]
    assert not delivery.is_redelivered


def test_events_of_the_brokers_own_hide_no_event_in_hand():
    net = Net(max_deliveries=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "kill")
    worker(net, 2, 1)
    in_hand(net, process)
    die(net, process)
    net.run(posting)
    assert len(letters(net, posting)["dead"]) == 1


# --- one at a time ---


def test_after_a_death_each_event_is_sent_alone_and_marked_until_the_process_is_past_them():
    net = Net()
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1, 2, 3)
    in_hand(net, process)
    die(net, process)
    post(net, posting, 4, 5)
    process = worker(net, 2, 0)
    seen = []
    for _ in range(20):
        net.down(process.channel)
        net.flush(process)
        net.up(process.channel)
        while (delivery := net.take(process)) is not None:
            if delivery.runs[0][0] != "eventsh":
                seen.append((delivery.runs[0][2], delivery.is_redelivered))
        if process.busy:
            net.complete(process)
            net.flush(process)
            net.up(process.channel)
    assert seen == [([1], True), ([2], True), ([3], True), ([4, 5], False)]
    assert slot_of(net, 0).careful == {}


def test_a_redelivered_unique_event_waits_for_all_before_it_and_holds_all_after_it():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    post_unique(net, posting, "suspect", "key")
    ack(net, first), ack(net, second)
    holder, other = (first, second) if slot_of(net, 0).uniques else (second, first)
    net.take(holder)
    post(net, posting, "before")
    ack(net, other)
    net.take(other)
    die(net, holder)
    post(net, posting, "after")
    ack(net, other)
    assert [run[2] for d in other.busy for run in d.runs if run[0] == "app"] == [["before"]]
    while other.busy:
        net.complete(other)
    for _ in range(3):
        net.flush(other)
        net.up(other.channel)
        net.down(other.channel)
    net.take(other)
    ack(net, other)
    assert net.take(other) is None
    net.run(other)
    assert other.data_of("app") == ["before", "suspect", "after"]


def test_between_two_redelivered_unique_events_others_are_sent_and_handled_before_the_second():
    net = Net()
    first, second = workers(net, 2)
    posting = poster(net)
    for number in range(4):
        post_unique(net, posting, f"suspect {number}", f"key {number}")
    ack(net, first), ack(net, second)
    net.take(first), net.take(second)
    post(net, posting, "between")
    die(net, first)
    post(net, posting, "after")
    seen: list[str] = []
    for _ in range(30):
        ack(net, second)
        while (delivery := net.take(second)) is not None:
            seen.extend(data for source, _, datas in delivery.runs if source == "app" for data in datas)
        suspects = [d for d in second.busy if d.is_redelivered]
        assert not suspects or len(second.busy) == 1
        if second.busy:
            net.complete(second)
    # All but the one that the second worker had in hand before.
    assert len(seen) == len(set(seen)) == 5


def test_a_process_that_comes_back_while_it_has_an_event_alone_gets_no_other():
    net = Net()
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1, 2)
    in_hand(net, process)
    die(net, process)
    process = worker(net, 2, 0)
    in_hand(net, process)
    net.disconnect(process)
    net.attach(process)
    ack(net, process)
    assert process.data_of("app") == [1]
    net.run()
    assert process.data_of("app") == [1, 2]


def test_posts_are_confirmed_once_the_process_is_past_the_suspects():
    net = Net()
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1, 2)
    in_hand(net, process)
    die(net, process)
    worker(net, 2, 0)
    post(net, posting, 3)
    net.down(posting.channel)
    assert posting.outbox.queued == 1
    net.run()
    assert posting.outbox.queued == 0


# --- dead letters ---


def dead(net, count=1, **posts):
    """A pool of one worker, and its dead letters."""
    pool, posting = Pool(net, 1), poster(net)
    pool.run()
    for number in range(count):
        post(net, posting, f"kill {number}")
        pool.run()
    return pool, posting


def test_observers_are_told_of_a_dead_letter_and_the_log_too():
    net = Net()
    watching = observer(net)
    _pool, _ = dead(net)
    net.run(watching)
    (facts,) = [data for source, event, data in watching.events if (source, event) == ("eventsh", "dead_letter")]
    assert (facts["id"], facts["source"], facts["event"], len(facts["deaths"])) == (1, "app", "e", 3)
    (notice,) = [notice for notice in net.notices if "dead letter" in notice]
    assert "event e of source app killed 3 processes" in notice
    assert "worker 0 (pid 1002): SIGKILL" in notice


def test_names_in_the_log_are_escaped():
    net = Net()
    pool, posting = Pool(net, 1), poster(net)
    pool.run()
    posting.outbox.post_unique("app\n", "\x1b[2J", "kill", "key\r")
    pool.run()
    (notice,) = [notice for notice in net.notices if "dead letter" in notice]
    assert notice.isprintable()


def test_only_so_many_dead_letters_are_kept_and_the_rest_is_counted():
    net = Net(max_dead_letters=2, max_deliveries=1)
    _, posting = dead(net, 5)
    facts = letters(net, posting)
    assert ([letter["id"] for letter in facts["dead"]], facts["discarded"]) == ([4, 5], 3)
    assert net.router.status(net.now)["broker"]["dead_letters"] == 5


def test_a_dead_letter_can_be_looked_at():
    net = Net()
    _, posting = dead(net)
    shown = ask(net, posting, "dead_show", id=1).data
    assert (shown["data"], shown["missing"]) == ("kill 0", [0])
    assert set(shown["deaths"][0]) == {"worker_id", "pid", "ended", "time"}


@pytest.mark.parametrize("what", ["dead_show", "dead_retry", "dead_drop"])
@pytest.mark.parametrize("number", [2, "1", True, 1.0, [1]])
def test_a_number_that_is_no_dead_letter_is_refused(what, number):
    net = Net()
    _, posting = dead(net)
    reply = ask(net, posting, what, id=number)
    assert "there is no dead letter" in reply.error
    assert len(letters(net, posting)["dead"]) == 1


def test_a_dropped_one_is_gone_and_is_still_delivered_to_nobody():
    net = Net()
    pool, posting = dead(net)
    assert ask(net, posting, "dead_drop", id=1).data == {"ids": [1]}
    assert letters(net, posting) == {"dead": [], "discarded": 0}
    pool.run()
    assert pool.deaths == 3


def test_a_retried_broadcast_goes_to_those_that_lacked_it_at_the_end_of_the_order():
    net = Net()
    pool, posting = Pool(net, 2), poster(net)
    pool.run()
    post(net, posting, "kill", "next")
    # One of the two can handle it.
    pool.mended = {1}
    pool.run()
    pool.mended = {0, 1}
    assert ask(net, posting, "dead_retry", id=1).data == {"ids": [1]}
    pool.run()
    assert pool.handled(0) == ["next", "kill"]
    assert pool.handled(1) == ["kill", "next"]
    (delivery,) = [
        d for _, p in pool.everybody for d in p.handled if d.runs[0][2] == ["kill"] and p.session.worker_id == 0
    ]
    assert delivery.is_redelivered
    assert delivery.pid == 1000 + posting.number
    assert letters(net, posting)["dead"] == []


def test_a_retried_one_that_kills_again_becomes_a_dead_letter_again():
    net = Net()
    pool, posting = dead(net)
    ask(net, posting, "dead_retry", id=1)
    pool.run()
    assert pool.deaths == 6
    assert [letter["id"] for letter in letters(net, posting)["dead"]] == [2]


def test_a_retried_one_that_kills_again_blames_no_event_after_it():
    net = Net()
    pool, posting = Pool(net, 4), poster(net)
    pool.run()
    post(net, posting, "kill")
    pool.run()
    ask(net, posting, "dead_retry", id=1)
    # Each of the four processes has both in hand when it dies.
    post(net, posting, "innocent")
    pool.run()
    found = [ask(net, posting, "dead_show", id=letter["id"]).data["data"] for letter in letters(net, posting)["dead"]]
    assert found == ["kill"]
    assert [pool.handled(slot) for slot in range(4)] == [["innocent"]] * 4


def test_a_process_that_a_retried_one_killed_had_an_event_in_hand():
    net = Net()
    pool, posting = dead(net)
    ask(net, posting, "dead_retry", id=1)
    in_hand(net, pool.holders[0])
    assert die(net, pool.holders[0])


@pytest.mark.parametrize("gone", ["expired", "leaving"])
def test_one_that_no_worker_can_get_now_is_kept(gone):
    net = Net()
    pool, posting = dead(net)
    last = pool.holders[0]
    if gone == "leaving":
        last.session.leave()
        net.flush(last)
        net.up(last.channel)
    else:
        die(net, last)
        net.advance(6)
    assert ask(net, posting, "dead_retry", id=1).error == (
        "no worker that lacks dead letter 1 can get it now: retry it when such a worker is attached,"
        " or remove it with 'eventsh dead drop 1'"
    )
    assert ask(net, posting, "dead_retry").data == {"ids": []}
    assert [letter["id"] for letter in letters(net, posting)["dead"]] == [1]


@pytest.mark.parametrize("mended", [True, False])
def test_a_retried_unique_event_runs_in_one_worker(mended):
    net = Net()
    pool, posting = Pool(net, 2), poster(net)
    pool.run()
    post_unique(net, posting, "kill", "key")
    pool.run()
    if mended:
        pool.mended = {0, 1}
    ask(net, posting, "dead_retry")
    pool.run()
    assert pool.handled(0) + pool.handled(1) == (["kill"] if mended else [])
    assert pool.deaths == (3 if mended else 6)
    assert len(letters(net, posting)["dead"]) == (0 if mended else 1)


def test_a_dead_letter_in_the_queue_of_a_slot_that_is_empty_never_leaves_it():
    net = Net(slots=2)
    pool, posting = Pool(net, 1), poster(net)
    pool.run()
    post(net, posting, 1, "kill", 2)
    pool.run()
    deaths = pool.deaths
    late = worker(net, 50, 1)
    net.run(late)
    assert late.data_of("app") == [1, 2]
    assert [gap["missed"] for gap in late.gaps] == [1]
    assert pool.deaths == deaths


def test_slots_that_are_empty_or_have_yet_to_get_a_dead_letter_lack_it_at_once():
    net = Net(slots=3, max_deliveries=1)
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, "innocent", "suspect")
    in_hand(net, second)
    die(net, second)
    # Has the first of its suspects alone, and the dead letter waits behind it.
    second = worker(net, 3, 1)
    in_hand(net, second)
    post(net, posting, 1, "kill", 2)
    ack(net, first)
    net.run(first)
    held = slot_of(net, 1)
    seq = max(entry.last for entry in held.queue if decode_header(entry.frame).count == 3) - 1
    third = worker(net, 4, 2)
    net.run(third)
    post(net, posting, "kill alone")
    in_hand(net, third)
    die(net, third)
    assert ask(net, posting, "dead_show", id=1).data["missing"] == [1, 2]
    gaps = [Gap.decode(entry.frame) for entry in held.queue if decode_header(entry.frame).kind == Kind.GAP]
    assert [(gap.missed, gap.reason) for gap in gaps] == [(1, "dead letter")]
    assert gaps[0].first_seq > seq
    net.run(second)
    assert second.data_of("app") == ["innocent", "suspect", 1, "kill", 2]


def test_the_gap_of_a_dead_letter_in_a_batch_counts_the_posts_up_to_it():
    net = Net(max_deliveries=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, 1, "kill", 2, 3)
    for number in range(2, 5):
        in_hand(net, process)
        if process.data_of("app")[-1:] == ["kill"]:
            die(net, process)
            break
        if number == 2:
            die(net, process)
            process = worker(net, number, 0)
        else:
            net.complete(process)
            for _ in range(2):
                net.flush(process)
                net.up(process.channel)
                net.down(process.channel)
    (gap,) = [Gap.decode(entry.frame) for entry in slot_of(net, 0).queue if decode_header(entry.frame).kind == Kind.GAP]
    assert (gap.missed, gap.posts) == (1, 2)


def test_the_gap_of_a_dead_letter_can_be_read_where_the_slot_misses_many_events_of_the_brokers_own():
    net = Net(max_deliveries=1, max_queue_len=1)
    process, posting = worker(net, 1, 0), poster(net)
    net.run()
    post(net, posting, "kill")
    in_hand(net, process)
    net.advance(6)
    assert slot_of(net, 0).is_dropping
    for number in range(2, 5):
        net.run(worker(net, number, number))
    die(net, process)
    successor = worker(net, 9, 0)
    net.run()
    assert successor.is_attached
    assert [gap["reason"] for gap in successor.gaps][:1] == ["dead letter"]


def test_a_dead_letter_that_a_live_process_has_in_hand_is_left_to_it():
    net = Net(max_deliveries=1)
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, "slow")
    in_hand(net, first), in_hand(net, second)
    # The second one has only lost its connection.
    net.disconnect(second)
    die(net, first)
    assert ask(net, posting, "dead_show", id=1).data["missing"] == [0]
    net.attach(second)
    net.run(second)
    assert (second.data_of("app"), second.gaps) == (["slow"], [])


def test_a_worker_that_had_a_dead_letter_under_way_when_it_died_gets_it_no_more():
    net = Net(max_deliveries=1)
    first, second = workers(net, 2)
    posting = poster(net)
    post(net, posting, "kill")
    # Sent to the second one, which never reads it.
    in_hand(net, first)
    die(net, first)
    die(net, second)
    late = worker(net, 3, 1)
    net.run(late)
    assert late.data_of("app") == []
    assert [gap["missed"] for gap in late.gaps] == [1]


def test_the_gaps_of_dead_letters_keep_the_count_of_posts_for_the_next_broker():
    net = Net()
    pool, posting = Pool(net, 2), poster(net)
    pool.run()
    post(net, posting, 1, "kill", 2)
    pool.run()
    net.replace_broker()
    for process in [*pool.holders.values(), posting]:
        net.connect(process)
    net.run()
    assert [pool.missed_dead(slot) for slot in range(2)] == [1, 1]
    assert [len(pool.gaps(slot)) for slot in range(2)] == [1, 1]
