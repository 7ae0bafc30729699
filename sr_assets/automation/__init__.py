"""What runs without being asked: the sensors, the schedule and the jobs of the code location."""
