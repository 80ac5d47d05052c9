"""What `watership demo` runs: a shop's orders as sagas on an embedded database, and a kill in the middle of them.

`orders` has the saga and is the file to read first; `shop` is what its steps talk to; `drive` is the program that is
killed and started again; `show` starts and kills it, and tells what happened. It needs no extra and no server.
"""
