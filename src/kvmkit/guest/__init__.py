"""The guest's side: images, the agent in them, and the client that talks to it."""
