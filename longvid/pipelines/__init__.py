"""The rollout loop, and one short module a method."""
