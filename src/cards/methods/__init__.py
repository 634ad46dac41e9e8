"""Methods decide what becomes of the text that engines propose."""
