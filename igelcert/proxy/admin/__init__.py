"""Administration: accounts and sessions, the REST interface, the pages. What they do, the modules above do."""
