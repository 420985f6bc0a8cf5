"""Pure tensor mathematics: nothing here knows of files, names or schemes."""
