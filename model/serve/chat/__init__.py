"""The messages of a chat, as requests have them."""
