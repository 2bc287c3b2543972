"""PPO: the loop, an update, its losses, the critic, the reference policy."""
