"""`velocity publish`: a checkpoint on the Hub, with a card that says what it was made from."""
