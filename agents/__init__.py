"""Agents: one file each; the name is in its `@register`."""
