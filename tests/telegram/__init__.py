"""A Telegram that fits in a test: a loopback MTProto server which the real Telethon client talks to.

`server`   TCP transport, data centres, the call log, a thread and a command line to run it
`api`      the account and the handlers of the RPCs that Telethon sends
`channel`  an in-memory channel and a seeded generator of its posts
`faults`   flood waits, errors, migrations, cuts, slow answers and short pages, by script
`crypto`   the server's side of the key exchange, of message encryption and of the password check
`clients`  Telethon clients for this process, and a launcher that lets another process trust the server
`texts`    the word mixer that writes the posts
"""
