"""The documentation is true: its commands run and print what it shows, its tables come from the code."""
