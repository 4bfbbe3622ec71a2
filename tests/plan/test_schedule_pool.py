"""What is kept of the schedules that were planned for one graph at many sizes."""

from __future__ import annotations

from graphopt.plan.schedule_pool import SchedulePool


def test_schedules_of_the_times_that_planners_were_asked_last_are_kept_each_once() -> None:
    pool = SchedulePool()
    for time in range(20):
        pool.add(10**time, [("auto", (0, 1, time)), ("auto", (0, 1, 99))])
        pool.serves((0, 1, time), {"args[0].size(0)": time})
    assert [schedule for _, schedule, _ in pool.planned].count((0, 1, 99)) <= 1
    assert (0, 1, 19) in {schedule for _, schedule, _ in pool.planned}
    assert len(pool.planned) <= 16 and len(pool.served) <= 16
    assert pool.is_near(10**19) and pool.is_planned(10**19)
    assert not pool.is_near(1) and not pool.is_planned(1)
