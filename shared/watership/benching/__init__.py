"""What `watership bench` measures: the broker, the database and the sagas of somebody's own installation.

All of it happens in a namespace that nobody else has, and nothing of it is left.
"""
