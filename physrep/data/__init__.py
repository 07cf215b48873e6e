"""Physics datasets: The Well's file format, the data module and one class a system."""
