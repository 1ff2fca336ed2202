"""Where a run's numbers go beside its folder, a module each: a sink is opened, told every round, and closed.

A sink that fails is reported once, gets nothing more, and stops nothing. Sinks are given what rounds.jsonl and
result.json hold, so what a run withholds they never see.
"""
