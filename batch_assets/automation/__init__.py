"""Automation: jobs, sensors, schedules, run requests and alerts."""
