"""Studies: experiments that show, or fail to show, what a paper says; each is one command."""
