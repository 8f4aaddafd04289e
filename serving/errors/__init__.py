"""The data plane's own refusals, as leaves of `model_store.errors.Refusal`: of a request itself (`requests`), of what a
caller may not have (`access`), of what the node cannot do (`node`); and how each surface writes them (`rendering`).

::

    BadInput            REQUEST_JSON, REQUEST_MESSAGE, REQUEST_FIELD, TENSOR_DATA, TENSOR_BINARY, BINARY_REQUIRED,
                        BODY_ENCODING
    Unauthenticated     KEY_MISSING
    PaymentRequired     PRICE_MISSING, LEASE_TOO_SMALL
    Forbidden           SCOPE_MISSING, NOT_OWNER
    NotFound            NO_SUCH_PATH, MODEL_NOT_FOUND, MODEL_UNLOADED, ADAPTER_BASE_MISSING
    Conflict            IDEMPOTENCY_CONFLICT, PORT_IN_USE
    TooLarge            BODY_TOO_LARGE
    TooMany             QUEUE_FULL, WAIT_TOO_LONG, UPLOADS_FULL, RPCS_FULL, RATE_LIMITED, CONCURRENCY_LIMITED,
                        BODIES_FULL
    TooSlow             BODY_TOO_SLOW
    HeadTooLarge        HEAD_TOO_LARGE
    Broken              INTERNAL_ERROR
    NotHere             NO_MARKET_HERE, GRPC_NOT_INSTALLED, EXTENSION_NOT_OFFERED
    Unavailable         MEMORY_FULL, SHUTTING_DOWN, ADMISSION_UNAVAILABLE, JOURNAL_UNAVAILABLE, CONNECTIONS_FULL,
                        PROCESS_AWAY, MODEL_IN_USE, NOT_EVERYWHERE
    DeadlineExceeded    DEADLINE_EXCEEDED
"""
