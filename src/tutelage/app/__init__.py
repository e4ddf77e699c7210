"""One job from config to exit code, the processes it starts, and the jobs of a sweep side by side."""
