package app.lethe

/** Says what the device is doing; asked on a thread of the client's, before a task and before every pass. */
typealias Device = FfiDevice

/** The platform's key store: keeps the 32 bytes with which the folder is sealed. */
typealias KeyStore = FfiKeyStore

/** Decides about orders to erase (almost) everything. */
typealias ErasureConsent = FfiErasureConsent
