"""The report page and the dashboard's notes and plots: they read a study, and write no trial's outcome."""
