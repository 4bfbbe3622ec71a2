"""What a planner sees and gives: problem, schedule, plan. Plain data, no torch."""
