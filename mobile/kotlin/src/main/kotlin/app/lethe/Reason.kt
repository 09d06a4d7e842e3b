package app.lethe

/** What was expected, what was got, and what to do. */
val LetheException.reason: String
    get() = when (this) {
        is LetheException.Offline -> reason
        is LetheException.Refused -> reason
        is LetheException.Deleted -> reason
        is LetheException.NeedsInvitation -> reason
        is LetheException.NotConfigured -> reason
        is LetheException.NotServed -> reason
        is LetheException.BadOption -> reason
        is LetheException.InUse -> reason
        is LetheException.Closed -> reason
        is LetheException.UnknownItem -> reason
        is LetheException.BadInput -> reason
        is LetheException.ConsentWithdrawn -> reason
        is LetheException.ListGone -> reason
        is LetheException.KeyStore -> reason
        is LetheException.KeyLost -> reason
        is LetheException.Damaged -> reason
        is LetheException.Storage -> reason
        is LetheException.Catalogue -> reason
        is LetheException.Model -> reason
        is LetheException.NotTrusted -> reason
        is LetheException.Stopped -> reason
        is LetheException.LeftOut -> reason
        is LetheException.Internal -> reason
    }
