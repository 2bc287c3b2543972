"""robosuite's scenes under words: control, physics, tasks, the scripted expert."""
