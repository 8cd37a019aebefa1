package config

// nameNodes gives guests a host name whose file does not.
func (r *reader) nameNodes(c *Config, host string) {
	if host == "" {
		return
	}
	for i := range c.Guests {
		g := &c.Guests[i]
		key := join("guest", g.Name)
		if g.Node != "" || !r.ok(key, key+".node_name") {
			continue
		}
		g.Node = nodeName(host, g.Name)
		if err := checkLabel(g.Node); err != nil {
			r.problemAt(key+".node_name", "is missing, and "+g.Node+" is no host name", "write "+hostName.want)
		}
	}
}
