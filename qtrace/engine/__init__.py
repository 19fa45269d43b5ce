"""A model as a stream of events: hooks, bound arguments, and the torch state that belongs to one side."""
