"""Guests: images, the agent inside, and the client that talks to it. Knows nothing of machines."""
