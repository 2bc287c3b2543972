"""Where the hand and the objects are, and how the hand should be turned to grasp one."""
