"""Any Gymnasium environment under words; and the worlds that ship as examples."""
