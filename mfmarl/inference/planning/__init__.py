"""From beliefs to what each action is worth: plans over a horizon, by several roads."""
