"""Chats: messages become a prompt by the folder's template, which is run apart and bounded."""
