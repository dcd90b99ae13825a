"""Every time limit of serving, in seconds. They are in one file because their order matters.

After SIGTERM and the drain, if there is one: `MAIN_AFTER_SIGTERM` < `STEP_AFTER_SIGTERM` on rank 0, which is <
`LEADER_AFTER_SIGTERM` on the others. All ranks add the same drain to these. Without a launcher it is at most
`DRAIN_WITHOUT_LAUNCHER`: that + `LEADER_AFTER_SIGTERM` + `STEP_AFTER_HANG_UP` is < the 15 s that
llama/distributed/launcher_watch.py gives a rank whose launcher was killed. A test holds this order.
"""

from __future__ import annotations

# The launcher was killed, and this rank sent itself SIGTERM: streams may run to their own end for so long.
DRAIN_WITHOUT_LAUNCHER = 4.0
# Rank 0 got SIGTERM. All streams have ended; `main` may tell its own clients before it is cancelled.
MAIN_AFTER_SIGTERM = 2.0
# Rank 0 got SIGTERM. A step cannot be interrupted: one that still runs is abandoned, and the process exits.
STEP_AFTER_SIGTERM = 4.5
# Another rank got SIGTERM, or its service was cancelled: how long rank 0 may take to end the service.
LEADER_AFTER_SIGTERM = 8.0
# Another rank has given up on rank 0: how long its own step may still run before the process exits.
STEP_AFTER_HANG_UP = 2.0
# The service failed and the streams have raised the reason: `main` is cancelled after this. Short, because
# the other ranks of the model wait for this process to end.
MAIN_AFTER_FAILURE = 1.0
# The interpreter exits and nobody closed the engine: how long it waits for the engine's thread.
STEP_AT_EXIT = 5.0

# A rank whose step failed waits this long for another rank's reason before it reports its own error.
REASON = 1.0

# Ranks connect: until all are there; between two tries; for one handshake.
CONNECT = 60.0
CONNECT_RETRY = 0.05
HANDSHAKE = 5.0
