"""VMs that work while what they are made of is killed at random: python -m tests.chaos --minutes 5."""
