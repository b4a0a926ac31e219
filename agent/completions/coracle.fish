# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_coracle_global_optspecs
    string join \n socket= h/help V/version
end

function __fish_coracle_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_coracle_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_coracle_using_subcommand
    set -l cmd (__fish_coracle_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c coracle -n "__fish_coracle_needs_command" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_needs_command" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_needs_command" -s V -l version -d 'Print version'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "agent" -d 'Run the agent itself: the daemon that all other commands but validate and logs talk to'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "provision" -d 'Install the identity that this gateway was given in the factory; does nothing if there is one'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "validate" -d 'Check an order, signed or not, without the agent: prints every reason against it'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "apply" -d 'Give the agent a signed order'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "status" -d 'Tell what was ordered, what runs, what does not and why, and when the next try is'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "ps" -d 'List every replica with its process id, restarts, last exit and image'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "events" -d 'Tell what happened lately, oldest first; only as far back as the agent\'s start'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "logs" -d 'Show what containers said, also while the agent is stopped; of their newest run, all that is kept'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "start" -d 'Let workloads run again that were stopped or drained by hand'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "stop" -d 'Stop workloads at once until they are started by hand: over a reboot and new orders, too'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "drain" -d 'Stop workloads as `stop` does, but first let them go on without new work for as long as ordered'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "restart" -d 'Make the replicas of workloads anew, a few at a time as in an update'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "commands" -d 'Tell what the fleet asked of this gateway, and what became of it'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "volumes" -d 'List the named volumes with size, last use and users; remove those that nobody uses'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "artifact" -d 'Artifacts: list those that are installed, install and remove them by hand'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "service" -d 'Native services: list those that stand here, and act on one by its coordinate'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "purge" -d 'Remove the runtime directories of native services, of one or of all of a workload'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "secrets" -d 'Secrets: what others need to seal them for this gateway'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "identity" -d 'Identity of workloads: what others need to verify their tokens'
complete -c coracle -n "__fish_coracle_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand agent" -l config -d 'Configuration file, TOML' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand agent" -l log-level -d 'How much is logged: error, warn, info, debug or trace' -r
complete -c coracle -n "__fish_coracle_using_subcommand agent" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand agent" -l log-json -d 'Log lines of JSON instead of text'
complete -c coracle -n "__fish_coracle_using_subcommand agent" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand provision" -l config -d 'Configuration file, TOML' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand provision" -l from -d 'Directory with an identity; may be given more than once, the first that has one counts' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand provision" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand provision" -l replace -d 'Take the place of what is installed, be it another gateway\'s'
complete -c coracle -n "__fish_coracle_using_subcommand provision" -l json -d 'Print what was done as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand provision" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand validate" -l config -d 'Configuration file that says where the program is that judges configurations by their templates; /etc/coracle/coracle.toml if there is one' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand validate" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand validate" -l json -d 'Print what was found as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand validate" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand apply" -l wait -d 'Wait until everything is as ordered, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand apply" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand apply" -l json -d 'Print the answer as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand apply" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand status" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand status" -l check -d 'End with exit code 1 unless everything is as ordered'
complete -c coracle -n "__fish_coracle_using_subcommand status" -s q -l quiet -d 'Print nothing; implies --check'
complete -c coracle -n "__fish_coracle_using_subcommand status" -l json -d 'Print the status as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand status" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand ps" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand ps" -l json -d 'Print the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand ps" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand events" -l after -d 'Leave out events up to the one with this sequence, as --json shows it' -r
complete -c coracle -n "__fish_coracle_using_subcommand events" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand events" -s f -l follow -d 'Go on until interrupted, also when the agent is started anew'
complete -c coracle -n "__fish_coracle_using_subcommand events" -l json -d 'Print one line of JSON for each event'
complete -c coracle -n "__fish_coracle_using_subcommand events" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s c -l container -d 'Only containers of this name' -r
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l since -d 'Only lines from a time on, such as 2026-03-01T12:00:00Z, or from a while ago, such as 10m' -r
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s n -l tail -d 'Only so many lines of each container, the last ones' -r
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l stream -d 'Only what was said on this one' -r
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l config -d 'Configuration file that says where logs are; /etc/coracle/coracle.toml if there is one' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s f -l follow -d 'Go on until interrupted, also when the container is started anew'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s p -l previous -d 'Of the run before the newest one: why did it end?'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l all -d 'Of all runs that are kept, not only of the newest one'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s t -l timestamps -d 'Put the time before each line'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -l json -d 'Print one line of JSON for each line, or the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand logs" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand start" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand start" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand start" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand start" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand stop" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand stop" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand stop" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand stop" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand drain" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand drain" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand drain" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand drain" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand restart" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand restart" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand restart" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand restart" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand commands" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand commands" -l json -d 'Print the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand commands" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and not __fish_seen_subcommand_from rm help" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and not __fish_seen_subcommand_from rm help" -l json -d 'Print the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and not __fish_seen_subcommand_from rm help" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and not __fish_seen_subcommand_from rm help" -f -a "rm" -d 'Remove volumes that nobody uses, with all that is in them'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and not __fish_seen_subcommand_from rm help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from rm" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from rm" -l yes -d 'Do not ask'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from rm" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from help" -f -a "rm" -d 'Remove volumes that nobody uses, with all that is in them'
complete -c coracle -n "__fish_coracle_using_subcommand volumes; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -f -a "list" -d 'List the artifacts that are installed, with size, age and users'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -f -a "show" -d 'Tell everything that is known of an artifact that is installed'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -f -a "install" -d 'Install an artifact, which then stays until it is removed by hand'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -f -a "remove" -d 'Remove an artifact that no workload uses, or may return to'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and not __fish_seen_subcommand_from list show install remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from list" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from list" -l json -d 'Print the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from show" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from show" -l json -d 'Print it as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -l sha256 -d 'SHA-256 of its ZIP; without it, what the repository says beside it' -r
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -l repository -d 'Repository that has it; without it, those of the configuration' -r
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -l no-wait -d 'Only begin it; the agent goes on by itself'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -l json -d 'Print the operation as JSON, and no progress'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from install" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from remove" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from remove" -l no-wait -d 'Only begin it; the agent goes on by itself'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from remove" -l json -d 'Print the operation as JSON, and no progress'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the artifacts that are installed, with size, age and users'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything that is known of an artifact that is installed'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from help" -f -a "install" -d 'Install an artifact, which then stays until it is removed by hand'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove an artifact that no workload uses, or may return to'
complete -c coracle -n "__fish_coracle_using_subcommand artifact; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "list" -d 'List the services that are ordered, that still run, or of which a directory is left'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "show" -d 'Tell everything that is known of a service'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "start" -d 'Let services run again that were stopped or drained by hand'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "stop" -d 'Stop services at once until they are started by hand'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "drain" -d 'Stop services as `stop` does, but first let them go on without new work for as long as ordered'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "restart" -d 'Make services anew'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "purge" -d 'Remove the runtime directories of services that are stopped or not ordered any more'
complete -c coracle -n "__fish_coracle_using_subcommand service; and not __fish_seen_subcommand_from list show start stop drain restart purge help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from list" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from list" -l json -d 'Print the list as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from show" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from show" -l json -d 'Print it as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from start" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from start" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from start" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from start" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from stop" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from stop" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from stop" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from drain" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from drain" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from drain" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from drain" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from restart" -l wait -d 'Wait until it is done, at most that many seconds; exit code 1 if it is not' -r
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from restart" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from restart" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from restart" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from purge" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from purge" -l yes -d 'Do not ask'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from purge" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from purge" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the services that are ordered, that still run, or of which a directory is left'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "show" -d 'Tell everything that is known of a service'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "start" -d 'Let services run again that were stopped or drained by hand'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop services at once until they are started by hand'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "drain" -d 'Stop services as `stop` does, but first let them go on without new work for as long as ordered'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "restart" -d 'Make services anew'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "purge" -d 'Remove the runtime directories of services that are stopped or not ordered any more'
complete -c coracle -n "__fish_coracle_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand purge" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand purge" -l yes -d 'Do not ask'
complete -c coracle -n "__fish_coracle_using_subcommand purge" -l json -d 'Print what became of each as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand purge" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and not __fish_seen_subcommand_from key help" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and not __fish_seen_subcommand_from key help" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and not __fish_seen_subcommand_from key help" -f -a "key" -d 'Print the public key that secrets for this gateway are sealed with'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and not __fish_seen_subcommand_from key help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and __fish_seen_subcommand_from key" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and __fish_seen_subcommand_from key" -l json -d 'Print the key and the gateway\'s id as JSON'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and __fish_seen_subcommand_from key" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and __fish_seen_subcommand_from help" -f -a "key" -d 'Print the public key that secrets for this gateway are sealed with'
complete -c coracle -n "__fish_coracle_using_subcommand secrets; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and not __fish_seen_subcommand_from keys help" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand identity; and not __fish_seen_subcommand_from keys help" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and not __fish_seen_subcommand_from keys help" -f -a "keys" -d 'Print the public keys that the tokens of this gateway\'s workloads are verified with, a JWK Set'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and not __fish_seen_subcommand_from keys help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and __fish_seen_subcommand_from keys" -l socket -d 'Socket of the agent\'s local API' -r -F
complete -c coracle -n "__fish_coracle_using_subcommand identity; and __fish_seen_subcommand_from keys" -s h -l help -d 'Print help'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and __fish_seen_subcommand_from help" -f -a "keys" -d 'Print the public keys that the tokens of this gateway\'s workloads are verified with, a JWK Set'
complete -c coracle -n "__fish_coracle_using_subcommand identity; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "agent" -d 'Run the agent itself: the daemon that all other commands but validate and logs talk to'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "provision" -d 'Install the identity that this gateway was given in the factory; does nothing if there is one'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "validate" -d 'Check an order, signed or not, without the agent: prints every reason against it'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "apply" -d 'Give the agent a signed order'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "status" -d 'Tell what was ordered, what runs, what does not and why, and when the next try is'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "ps" -d 'List every replica with its process id, restarts, last exit and image'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "events" -d 'Tell what happened lately, oldest first; only as far back as the agent\'s start'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "logs" -d 'Show what containers said, also while the agent is stopped; of their newest run, all that is kept'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "start" -d 'Let workloads run again that were stopped or drained by hand'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "stop" -d 'Stop workloads at once until they are started by hand: over a reboot and new orders, too'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "drain" -d 'Stop workloads as `stop` does, but first let them go on without new work for as long as ordered'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "restart" -d 'Make the replicas of workloads anew, a few at a time as in an update'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "commands" -d 'Tell what the fleet asked of this gateway, and what became of it'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "volumes" -d 'List the named volumes with size, last use and users; remove those that nobody uses'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "artifact" -d 'Artifacts: list those that are installed, install and remove them by hand'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "service" -d 'Native services: list those that stand here, and act on one by its coordinate'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "purge" -d 'Remove the runtime directories of native services, of one or of all of a workload'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "secrets" -d 'Secrets: what others need to seal them for this gateway'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "identity" -d 'Identity of workloads: what others need to verify their tokens'
complete -c coracle -n "__fish_coracle_using_subcommand help; and not __fish_seen_subcommand_from agent provision validate apply status ps events logs start stop drain restart commands volumes artifact service purge secrets identity help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from volumes" -f -a "rm" -d 'Remove volumes that nobody uses, with all that is in them'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from artifact" -f -a "list" -d 'List the artifacts that are installed, with size, age and users'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from artifact" -f -a "show" -d 'Tell everything that is known of an artifact that is installed'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from artifact" -f -a "install" -d 'Install an artifact, which then stays until it is removed by hand'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from artifact" -f -a "remove" -d 'Remove an artifact that no workload uses, or may return to'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "list" -d 'List the services that are ordered, that still run, or of which a directory is left'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "show" -d 'Tell everything that is known of a service'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "start" -d 'Let services run again that were stopped or drained by hand'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "stop" -d 'Stop services at once until they are started by hand'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "drain" -d 'Stop services as `stop` does, but first let them go on without new work for as long as ordered'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "restart" -d 'Make services anew'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "purge" -d 'Remove the runtime directories of services that are stopped or not ordered any more'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from secrets" -f -a "key" -d 'Print the public key that secrets for this gateway are sealed with'
complete -c coracle -n "__fish_coracle_using_subcommand help; and __fish_seen_subcommand_from identity" -f -a "keys" -d 'Print the public keys that the tokens of this gateway\'s workloads are verified with, a JWK Set'
