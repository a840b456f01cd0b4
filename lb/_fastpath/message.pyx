"""The one table of reason phrases that lb itself uses (RFC 9110 15)."""


cdef const char* status_phrase(int status) noexcept nogil:
    if status == 200:
        return b"OK"
    if status == 204:
        return b"No Content"
    if status == 301:
        return b"Moved Permanently"
    if status == 302:
        return b"Found"
    if status == 304:
        return b"Not Modified"
    if status == 307:
        return b"Temporary Redirect"
    if status == 308:
        return b"Permanent Redirect"
    if status == 401:
        return b"Unauthorized"
    if status == 403:
        return b"Forbidden"
    if status == 410:
        return b"Gone"
    if status == 500:
        return b"Internal Server Error"
    if status == 400:
        return b"Bad Request"
    if status == 404:
        return b"Not Found"
    if status == 405:
        return b"Method Not Allowed"
    if status == 408:
        return b"Request Timeout"
    if status == 413:
        return b"Content Too Large"
    if status == 414:
        return b"URI Too Long"
    if status == 417:
        return b"Expectation Failed"
    if status == 429:
        return b"Too Many Requests"
    if status == 431:
        return b"Request Header Fields Too Large"
    if status == 501:
        return b"Not Implemented"
    if status == 502:
        return b"Bad Gateway"
    if status == 503:
        return b"Service Unavailable"
    if status == 504:
        return b"Gateway Timeout"
    if status == 505:
        return b"HTTP Version Not Supported"
    return b"Error"
