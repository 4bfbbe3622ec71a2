"""The planners' inner loops: as C++, and as the short Python that defines what they do.

`loops.py` says what they are, and picks: the C++ (`compiled.py`, `cpp/`) where there is a compiler, the
definitions (`plain*.py`) elsewhere. Both keep the same promises; they need not find the same schedules.
"""
