"""States of earlier commits, and the script that wrote them."""
