"""`velocity serve`: an HTTP server with OpenAI's API, which writes many texts at a time."""
