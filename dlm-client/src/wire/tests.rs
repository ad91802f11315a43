//! Goal and method stand at each test.
