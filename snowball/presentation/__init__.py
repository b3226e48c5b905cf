"""What people see of any document: tables, figures in one style, and pages."""
