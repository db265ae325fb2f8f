"""The report page and the dashboard's notes and plots; they read a study, and never change a trial's outcome."""
