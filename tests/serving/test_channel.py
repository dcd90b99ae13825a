"""Packets between ranks arrive whole and in order, and a rank that ends is noticed and named."""

from __future__ import annotations

import errno
import queue
import socket
import threading

import pytest
from async_engines import LIMIT
from thread_ranks import CPU, ThreadRank, connected

from llama.distributed.parallel import Parallel
from llama.errors import RankError
from llama.serving import channel, timeouts


def test_packets_of_any_size_arrive_in_order():
    packets = [b"", b"x", bytes(3_000_000), b"", b"end"]
    with connected(3) as (leader, *followers):
        sending = threading.Thread(target=lambda: [leader.send(packet) for packet in packets])
        sending.start()
        for follower in followers:
            assert [follower.receive() for _ in packets] == packets
        sending.join()
        leader.check()


def test_one_rank_needs_no_connection():
    alone = channel.lead_channel(Parallel(), CPU)
    alone.send(b"x")
    alone.check()
    assert alone.reason() is None
    assert not alone.peers


def test_a_rank_that_hangs_up_is_noticed_and_named(monkeypatch):
    monkeypatch.setattr(timeouts, "REASON", 0.05)  # how long `send` waits for an answer, and none comes
    with connected(3) as (leader, first, second):
        second.close()
        with pytest.raises(RankError, match="rank 2 is gone"):
            leader.check()
        leader.peers.pop(2).close()
        leader.send(b"not read")
        first.send("rank 1 has its reasons")
        first.close()
        assert str(leader.reason()) == "rank 1 has its reasons"


def test_a_first_rank_that_hangs_up_is_noticed():
    with connected() as (leader, follower):
        leader.close()
        with pytest.raises(RankError, match="rank 0 is gone"):
            follower.receive()


def test_a_machine_that_fell_silent_is_not_taken_for_a_process_that_ended():
    """As the system reports it after a while; tests/distributed/test_cut_off.py makes it happen."""
    with connected(3) as (leader, first, second):
        for end in (*leader.peers.values(), first.leader, second.leader):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        lost = (
            OSError(errno.EHOSTUNREACH, "No route to host"),
            OSError(errno.ETIMEDOUT, "Connection timed out"),
        )

        class Lost:
            def __init__(self, error):
                self.error = error

            def fail(self, *args):
                raise self.error

            sendall = recv = fail

            def settimeout(self, seconds):
                pass

            def close(self):
                pass

        for error in lost:
            leader.peers[2].close()
            leader.peers[2] = Lost(error)
            with pytest.raises(RankError, match="rank 2 is gone: its machine cannot be reached"):
                leader.send(b"x")
            second.leader.close()
            second.leader = Lost(error)
            for seconds in (None, 1.0):
                with pytest.raises(RankError, match="rank 0 is gone: its machine cannot be reached"):
                    second.receive(seconds)


def test_a_follower_can_hang_up_and_can_wait_for_a_while():
    with connected() as (leader, follower):
        with pytest.raises(TimeoutError):
            follower.receive(0.01)

        def receive():
            with pytest.raises(RankError, match="rank 0 is gone"):
                follower.receive()

        waiting = threading.Thread(target=receive, daemon=True)
        waiting.start()
        follower.hang_up("it has to go")
        waiting.join(LIMIT)
        assert not waiting.is_alive()
        with pytest.raises(RankError, match="it has to go"):
            leader.check()


def test_a_rank_that_was_sent_away_calls_again(monkeypatch):
    tries = []
    introduce = channel.introduce

    def dropped(line, *more):
        tries.append(line)
        if len(tries) < 3:
            raise ConnectionResetError
        return introduce(line, *more)

    monkeypatch.setattr(channel, "introduce", dropped)
    with connected(2) as (leader, follower):
        leader.send(b"x")
        assert follower.receive() == b"x"
    assert len(tries) == 3


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(timeouts, "CONNECT", 0.05)
    with pytest.raises(RankError, match=r"rank\(s\) \[1, 2\] did not reach rank 0 at .* within"):
        channel.lead_channel(ThreadRank(0, [queue.Queue() for _ in range(3)]), CPU)
