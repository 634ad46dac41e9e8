"""The server: OpenAI's API for completions and chats, with one engine and one reward."""
