"""Runs a user's saga on the real engine in virtual time, many times over, with another fault each time.

It stands on the whole product, services included; `watership.testing.torture` imports it when it is called.
"""
