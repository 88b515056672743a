"""HTTP/1.1 on both sides. The only rooms that know sockets; the rest sees requests, responses and byte iterators."""
