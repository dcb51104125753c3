"""--chat: rows become chats, and chats tokens, some of which are trained on. New formats of rows go
here, and nothing that knows about units or machines.
"""
