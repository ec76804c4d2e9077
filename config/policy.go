package config

func policyFor(c *Config, name string) Policy { return c.Policy }
