"""What people read about data and runs: a page in a browser, and lines in the terminal."""
