"""Chaos: the real pipeline behind broken networks, killed processes and full disks, and what must hold afterwards.

``python -m tests.chaos --seed 1 --rounds 20`` runs rounds 1 … 20 and prints a table; ``--seed 7`` alone runs round 7
again. A round's seed decides what is run, which faults there are and how often, and when what kind of process is
killed. Which request or process that hits depends on the scheduler, too, so a seed repeats a round's conditions and
not each of its moments.

- ``plan``: what a seed means;
- ``world``: a bucket behind the faulty proxy, and projects that use it;
- ``kills``: signals to processes;
- ``checks``: what must hold after a round;
- ``rounds``: one round from its beginning to its verdict.
"""
