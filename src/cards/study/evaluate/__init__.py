"""What answers are worth: judged in pairs, scored, and looked at for refusals and harm."""
